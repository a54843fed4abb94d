"""From raw images to batches: sources, audit, shards, order, augmentation, loaders.

Import from the modules: staging's worker processes start fast because nothing heavy is imported here.
"""
