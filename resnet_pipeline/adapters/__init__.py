"""Ray and MLflow: the only modules that know them."""
