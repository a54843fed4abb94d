"""From a source of images to a dataset: every image audited, packed into shards, an index and a manifest.

Import from the modules: worker processes start fast because nothing heavy is imported here.
"""
