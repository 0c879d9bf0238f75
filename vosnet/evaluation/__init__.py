"""Quality of masks: benchmarks with annotations, results on disk, scores, comparison, submission."""
