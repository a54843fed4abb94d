"""Where files lie: a folder of this machine or a bucket, and copies of them on this machine."""
