"""Ray, MLflow and S3: the only modules that know them."""
