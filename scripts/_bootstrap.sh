# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# Sourced by the commands in this folder: finds or makes build/venv, the Python environment that everything runs in, and
# puts it first in PATH. Sets REPO and VENV. A second run uses no network.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$REPO/build/venv

_bootstrap_fail() {
	echo "$(basename "$0"): $1" >&2
	exit 1
}

# What the environment was made from. The path counts because an environment can't be moved.
_bootstrap_key() {
	echo "$VENV $("$VENV/bin/python" -V 2>&1) $(cat "$REPO/setup.cfg" "$REPO/pyproject.toml" | cksum)"
}

_bootstrap_have_python() {
	python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null
}

_bootstrap_install_python() {
	local log=$REPO/build/logs/packages.log missing="python3 (3.11 or newer) with venv"
	if ! command -v apt-get > /dev/null || [ "$(id -u)" -ne 0 ]; then
		_bootstrap_fail "$missing is missing; on Debian 12 or newer: sudo apt-get install python3 python3-venv"
	fi
	echo "installing python3 ..." >&2
	export DEBIAN_FRONTEND=noninteractive
	{
		apt-get update && apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 python3 python3-venv
	} > "$log" 2>&1 || _bootstrap_fail "installing python3 failed: $(grep -m 1 '^E: ' "$log") (log: $log)"
	_bootstrap_have_python || _bootstrap_fail "$missing is missing, and this system has only $(python3 -V 2>&1)"
}

_bootstrap_make() {
	local log=$REPO/build/logs/pip.log
	_bootstrap_have_python || _bootstrap_install_python
	echo "setting up the Python environment in build/venv ..." >&2
	rm -rf "$VENV"
	{
		python3 -m venv "$VENV" &&
			"$VENV/bin/python" -m pip install --disable-pip-version-check --no-input -e "${REPO}[dev]"
	} > "$log" 2>&1 || _bootstrap_fail "setting up build/venv failed: $(_bootstrap_reason "$log") (log: $log)"
	_bootstrap_key > "$VENV/made-from"
}

_bootstrap_reason() {
	grep -m 1 -E 'No space left|^ERROR: ' "$1" || tail -n 1 "$1"
}

if [ "$(_bootstrap_key)" != "$(cat "$VENV/made-from" 2> /dev/null)" ]; then
	mkdir -p "$REPO/build/logs" || _bootstrap_fail "$REPO/build can't be written"
	exec 9> "$REPO/build/.bootstrap-lock"
	flock --wait 900 9 || _bootstrap_fail "another run has been setting up build/venv for 15 minutes"
	# the run that was waited for may have made it
	[ "$(_bootstrap_key)" = "$(cat "$VENV/made-from" 2> /dev/null)" ] || _bootstrap_make
	exec 9>&-
fi

export VIRTUAL_ENV=$VENV PATH=$VENV/bin:$PATH
