"""Annotations, storage, datasets, transforms, tokens, and the generated demo data."""
