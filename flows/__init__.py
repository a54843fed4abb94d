"""Prefect flows: decorated shells around ``resnet_pipeline.jobs``, which work without Prefect too."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())
