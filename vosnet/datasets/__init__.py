"""Where data sets lie on disk, what they hold, and how training clips are drawn from them."""
