"""How good masks are: benchmarks with truth, results on disk, scores, comparison, submission."""
