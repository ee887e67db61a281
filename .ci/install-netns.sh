#!/usr/bin/env bash
# Installs what tests/netns.rs needs, on Debian and Ubuntu, as root. Running those tests needs root too.
set -euo pipefail

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends iproute2 nftables coturn python3 iputils-ping miniupnpd-nftables conntrack
