"""The jobs behind the command line and the flows: plain functions that return what they did, without Prefect."""
