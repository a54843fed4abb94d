#!/usr/bin/env python
"""Make the bucket S3_BUCKET at AWS_ENDPOINT_URL unless it is there; wait for the store up to two minutes."""

import os
import sys
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError


def main() -> None:
    """Return when the bucket is there; end the process with status 1 when the store does not answer."""
    bucket = os.environ["S3_BUCKET"]
    client = boto3.client("s3")
    deadline = time.monotonic() + 120
    while True:
        try:
            if bucket in {entry["Name"] for entry in client.list_buckets()["Buckets"]}:
                print(f"bucket {bucket} is there")
                return
            client.create_bucket(Bucket=bucket)
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                sys.exit(f"no bucket {bucket} at {os.environ.get('AWS_ENDPOINT_URL')} after 120 s: {error}")
            time.sleep(2)


if __name__ == "__main__":
    main()
