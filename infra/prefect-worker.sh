#!/usr/bin/env bash
# A Prefect worker that is also a node of the Ray cluster.
#
# Flows run in this container (a process work pool) and call ray.init(address=RAY_ADDRESS). That attaches to a Ray node
# on the same host: a driver maps the node's shared memory and talks to its sockets, so a container that only reaches
# the head's port cannot be one. The node offers no CPUs and no GPUs, so Ray places no worker here.
#
# Both end together: a worker without its Ray node would accept flows only to fail them. The container's restart policy
# starts a new pair.
#
# If runs are kept in a bucket (RESNET_PIPELINE_RUNS) trainings live on the cluster, and flows only follow them. Then a
# container that ends leaves its flows as they are, and the next one takes them up. It must be the pool's only one.
set -uo pipefail
# job control: without it bash starts background commands with SIGINT ignored, and SIGINT is what stops a worker
set -m

: "${RAY_ADDRESS:?set RAY_ADDRESS to the host:port of the Ray head}"
: "${PREFECT_API_URL:?set PREFECT_API_URL to the API of the Prefect server}"

pool=${RESNET_PIPELINE_POOL:-local}
ray start --address="$RAY_ADDRESS" --num-cpus=0 --num-gpus=0 --block &
ray_node=$!

worker=
children() { cat "/proc/$1/task/"*/children 2>/dev/null | tr '\n' ' '; }
leave() {
  # all at once: what lives on would tell Prefect that a flow run has crashed
  local flows flow
  read -r -a flows <<<"$(children "$worker")"
  kill -KILL "$worker"
  for flow in "${flows[@]}"; do kill -KILL "$flow" $(children "$flow") 2>/dev/null; done
}
stop() {
  if [[ -n $worker && -n ${RESNET_PIPELINE_RUNS:-} ]]; then
    leave
    worker=
  fi
  # The flows first: SIGINT asks a training flow to save a checkpoint and end, which needs the Ray node, and a worker
  # that ends takes its flows with it at once. 75 s here and 30 s for the node to drain fit into the 2 minutes that
  # compose.yaml and prefect.yaml grant.
  if [[ -n $worker ]]; then
    local flows=() flow second left
    # each thread of the worker lists the processes that it started itself
    read -r -a flows <<<"$(children "$worker")"
    for flow in "${flows[@]}"; do kill -INT "$flow" 2>/dev/null; done
    for ((second = 0; second < 75; second++)); do
      left=0
      for flow in "${flows[@]}"; do kill -0 "$flow" 2>/dev/null && left=1; done
      ((left)) || break
      sleep 1
    done
    kill -INT "$worker" 2>/dev/null
    wait "$worker"
  fi
  kill -TERM "$ray_node" 2>/dev/null
  wait "$ray_node"
}
trap 'stop; exit 0' TERM INT

# the flow's process needs the node from its first second
until ray status --address="$RAY_ADDRESS" >/dev/null 2>&1; do
  kill -0 "$ray_node" 2>/dev/null || { echo "the Ray node ended before it joined $RAY_ADDRESS" >&2; exit 1; }
  sleep 1
done

if [[ -n ${RESNET_PIPELINE_RUNS:-} ]]; then
  until python -m resnet_pipeline.services.lost_runs "$pool"; do
    kill -0 "$ray_node" 2>/dev/null || exit 1
    sleep 2
  done
fi
prefect worker start --pool "$pool" --type process --name "$pool" --with-healthcheck &
worker=$!

wait -n "$ray_node" "$worker"
status=$?
echo "the Ray node or the Prefect worker ended with status $status; ending the other" >&2
stop
exit 1
