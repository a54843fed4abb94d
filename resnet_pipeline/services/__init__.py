"""What runs beside the jobs: the servers of this machine, the deployments, and a look at what there is."""
