#!/bin/sh
# PostgreSQL for the tests, which start a server of their own: installed where that takes no question. One line says what was
# done. It never fails: tests of a server that is not there are skipped, and say so (in CI they fail).
packaged=${1:-/usr/lib/postgresql}

here() { command -v initdb >/dev/null || ls "$packaged"/*/bin/initdb >/dev/null 2>&1; }
gone() { echo "PostgreSQL is not here, and its tests are skipped: $1. To have it: install your system's postgresql (Debian, Ubuntu: apt install postgresql)" >&2; exit 0; }
get() {
	$root env DEBIAN_FRONTEND=noninteractive timeout 600 apt-get -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=15 \
		-o DPkg::Lock::Timeout=60 "$@" </dev/null >/dev/null 2>&1
}

if here; then
	echo "PostgreSQL is here; the tests start a server of their own"
	exit 0
fi
command -v apt-get >/dev/null || gone "there is no apt-get to install it with"
if [ "$(id -u)" = 0 ]; then root=
elif sudo -n true 2>/dev/null; then root="sudo -n"
else gone "to install it takes root, or sudo without a password"
fi
get update # where it fails, the lists that are there may do
get install -y --no-install-recommends postgresql && here || gone "apt-get could not install it"
echo "PostgreSQL was installed (apt-get install postgresql); the tests start a server of their own"
