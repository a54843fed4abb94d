-- The second database, MLflow's; POSTGRES_DB makes the first (prefect). They are apart because each server migrates its own.
CREATE DATABASE mlflow;
