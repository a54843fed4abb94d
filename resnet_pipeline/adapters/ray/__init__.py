"""Ray: the cluster, and what runs on it: training, evaluation, staging."""
