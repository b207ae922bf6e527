#!/usr/bin/env bash
# Fetch the official YOLOv5 weights into weights/, where training starts from them and from where images take them.
#
#   ymir/docker/fetch_weights.sh [--to DIR] MODEL...        such as yolov5n yolov5s yolov5m6
#   ymir/docker/fetch_weights.sh [--to DIR] --sha256 HEX MODEL
#
#   --to DIR        where they go (default: weights/ of this project)
#   --sha256 HEX    what the file has to be; needed for a model whose checksum isn't known here
#
# They are no part of this project: YOLOv5's authors publish them under AGPL-3.0 (GPL-3.0 before 2023), and an image that
# holds them is handed on under that licence's terms. The status is 1 where a file can't be had or isn't what it should be.
set -euo pipefail

release=https://github.com/ultralytics/yolov5/releases/download/v7.0
models='yolov5n yolov5s yolov5m yolov5l yolov5x yolov5n6 yolov5s6 yolov5m6 yolov5l6 yolov5x6'
# Of the copy that the tests read. The checksums of the others are not known here: nobody has had the files.
known='yolov5n 4f180cf23ba0717ada0badd6c685026d73d48f184d00fc159c2641284b2ac0a3'

say() { printf 'fetch_weights: %s\n' "$*" >&2; }
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"; }
checksum() { sha256sum -- "$1" | cut -d' ' -f1; }
known_checksum() { printf '%s\n' "$known" | awk -v model="$1" '$1 == model {print $2}'; }
need_value() {
  [ "$2" -ge 2 ] || {
    say "$1: needs a value (--help shows the usage)"
    exit 2
  }
}

# accept FILE WANTED TARGET: make a file that is what it should be the target.
accept() {
  local got
  got=$(checksum "$1")
  if [ "$got" != "$2" ]; then
    say "$1: its SHA-256 is $got, need $2; it is damaged or another file: remove it, and fetch it again"
    return 1
  fi
  [ "$1" = "$3" ] || mv -- "$1" "$3"
  say "$3: is there, and is what it should be"
}

fetch() {
  local model=$1 wanted=$2
  local target=$folder/$model.pt unchecked=$folder/$model.pt.unchecked
  if [ -e "$target" ]; then
    if [ -n "$wanted" ]; then
      accept "$target" "$wanted" "$target"
    else
      say "$target: is there already; its checksum isn't known here"
    fi
    return
  fi
  if [ ! -e "$unchecked" ]; then
    if ! curl --fail --location --proto '=https' --silent --show-error --output "$unchecked.part" "$release/$model.pt"; then
      rm -f -- "$unchecked.part"
      say "$release/$model.pt: could not be fetched; copy the file to $target by hand"
      return 1
    fi
    mv -- "$unchecked.part" "$unchecked"
  fi
  if [ -n "$wanted" ]; then
    accept "$unchecked" "$wanted" "$target"
    return
  fi
  say "$unchecked: the checksum of $model isn't known here; its SHA-256 is $(checksum "$unchecked")"
  say "compare it with another source, then take it: $0 --to $folder --sha256 HEX $model"
  return 1
}

folder=$(cd -- "$(dirname -- "$0")/../.." && pwd)/weights given='' chosen=()
while [ "$#" -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --to) need_value "$1" "$#"; folder=$2; shift 2 ;;
    --sha256) need_value "$1" "$#"; given=$(printf '%s' "$2" | tr A-F a-f); shift 2 ;;
    *)
      case " $models " in
        *" ${1%.pt} "*) chosen+=("${1%.pt}"); shift ;;
        *) say "$1: there is no such model, need one of $models"; exit 2 ;;
      esac ;;
  esac
done
[ "${#chosen[@]}" -gt 0 ] || { usage >&2; exit 2; }
if [ -n "$given" ]; then
  [[ $given =~ ^[0-9a-f]{64}$ ]] || { say "--sha256: need 64 hexadecimal digits"; exit 2; }
  [ "${#chosen[@]}" = 1 ] || { say "--sha256: is of one file; name one model"; exit 2; }
fi
mkdir -p -- "$folder"
say "these weights are YOLOv5's, under AGPL-3.0 (GPL-3.0 before 2023), not under this project's licence"
failed=0
for model in "${chosen[@]}"; do
  fetch "$model" "${given:-$(known_checksum "$model")}" || failed=1
done
exit "$failed"
