"""What people type: parse the arguments, call one function, report."""
