"""From a staged dataset to batches: shards, order, crops, decoders, loaders."""
