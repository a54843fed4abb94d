"""What ``python -m resnet_pipeline.cli`` runs."""

from resnet_pipeline.cli.main import main

main()
