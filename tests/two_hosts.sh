#!/usr/bin/env bash
# Two hosts on one machine: network namespaces with an address each, the commands of docs/distributed.md in both, and the
# tables compared with those of one process. As root on Linux; PYTHON names an interpreter that has this package.
set -euo pipefail
python=${PYTHON:-python}
out=$(mktemp -d)
names=("onebp-a-$$" "onebp-b-$$")
trap 'for name in "${names[@]}"; do ip netns del "$name" 2> /dev/null || true; done; rm -rf "$out"' EXIT

for name in "${names[@]}"; do ip netns add "$name"; done
ip link add "va$$" netns "${names[0]}" type veth peer name "vb$$" netns "${names[1]}"
link=("va$$" "vb$$")
for host in 0 1; do
  ip -n "${names[$host]}" address add "10.99.0.$((host + 1))/24" dev "${link[$host]}"
  ip -n "${names[$host]}" link set "${link[$host]}" up
  ip -n "${names[$host]}" link set lo up
done

cat > "$out/train.py" << 'PYTHON'
import sys
from recbole_onebp.cli import main
if __name__ == "__main__":
    run = ["--model=OneBP", "--dataset=ml-100k", "--epochs=3"]
    sys.exit(main(["train", *run, "--recbole_checkpoint=true", "--show_progress=False", *sys.argv[1:]]))
PYTHON
on() { local host=$1; shift
  ip netns exec "${names[$host]}" env GLOO_SOCKET_IFNAME="${link[$host]}" "$@" > /dev/null; }
n=${PROCESSES:-1}

"$python" "$out/train.py" --output_dir="$out/one" > /dev/null
for host in 0 1; do
  on "$host" "$python" "$out/train.py" --nproc="$n" --world_size=$((2 * n)) --group_offset=$((host * n)) \
    --ip=10.99.0.1 --port=29511 --output_dir="$out/recbole" &
done
wait -n; wait -n
for host in 0 1; do
  on "$host" "$python" -m torch.distributed.run --nnodes=2 --node_rank="$host" --nproc_per_node="$n" \
    --master_addr=10.99.0.1 --master_port=29512 "$out/train.py" --output_dir="$out/torchrun" &
done
wait -n; wait -n
"$python" - "$out" << 'PYTHON'
import sys
import torch
import recbole_onebp, recbole.config
one, *others = (torch.load(f"{sys.argv[1]}/{run}/checkpoint.pth", weights_only=False) for run in ("one", "recbole", "torchrun"))
for other in others:
    for name, table in one["state_dict"].items():
        assert torch.equal(table, other["state_dict"][name]), name
print("two hosts, by RecBole's flags and by torchrun: the tables of one process, bit for bit")
PYTHON
