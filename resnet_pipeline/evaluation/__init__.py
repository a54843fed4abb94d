"""Protocols, scores and everything that is computed from them; nothing here knows Ray, MLflow or Prefect."""
