"""Fused operators for video correspondence: tensors in, tensors out."""
