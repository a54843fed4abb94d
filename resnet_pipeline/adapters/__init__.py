"""Ray and MLflow: what the jobs ask of them. Only these modules know Ray and MLflow, and `doctor`'s questions."""
