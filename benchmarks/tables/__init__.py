"""Tables of the measured figures, as lines of Markdown, from benchmarks/results/*.json."""
