-- The second database; POSTGRES_DB makes the first (prefect). They are apart because each server migrates its own.
CREATE DATABASE mlflow;
