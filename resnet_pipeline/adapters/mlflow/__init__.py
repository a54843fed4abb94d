"""MLflow: runs, metrics, the model registry, ensembles."""
