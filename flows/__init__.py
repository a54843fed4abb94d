"""Prefect flows: decorated shells around ``resnet_pipeline.jobs``, which work without Prefect too."""
