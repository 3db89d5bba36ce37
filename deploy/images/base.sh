#!/usr/bin/env bash
# A base image out of Debian's packages, for machines that cannot pull python:3.11-slim:
#
#   deploy/images/base.sh [NAME]      (stockpredict-base by default; needs root, mmdebstrap and buildah)
#
# Same Debian release, same Python series, security updates included, no compiler. The mirrors are those of this
# machine's apt; none of its configuration stays in the image.
set -euo pipefail
name=${1:-stockpredict-base}
suite=bookworm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

packages=ca-certificates,python3.11-minimal,python3.11-venv,tzdata,libgomp1
apt-cache policy | awk -v suite="$suite" '$3 ~ "^" suite ".*/main$" && $4 == "amd64" {sub("/main", " main", $3); print "deb", $2, $3}' \
  >"$work/mirrors"
[ -s "$work/mirrors" ] || echo "deb http://deb.debian.org/debian $suite main" >"$work/mirrors"
mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
  --dpkgopt=path-exclude='/usr/share/doc/*' --dpkgopt=path-exclude='/usr/share/man/*' \
  --dpkgopt=path-exclude='/usr/share/locale/*' --dpkgopt=path-exclude='/usr/share/info/*' \
  --customize-hook='ln -sf python3.11 "$1/usr/bin/python3"; ln -sf python3.11 "$1/usr/bin/python"' \
  --customize-hook='rm -f "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/* "$1"/etc/resolv.conf "$1"/etc/hostname' \
  "$suite" "$work/base.tar" "$work/mirrors"

container=$(buildah from scratch)
buildah add --quiet "$container" "$work/base.tar" / >/dev/null
buildah config --cmd python3 --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
buildah commit --quiet --rm "$container" "$name" >/dev/null
buildah images --format '{{.Name}} {{.Size}}' "$name"
