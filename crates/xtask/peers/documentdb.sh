#!/bin/sh
# documentdb.sh DIRECTORY PORT: PostgreSQL 18 with the DocumentDB extension from Debian's next release, unpacked below
# DIRECTORY/root and never installed, so that the machine's own release does not matter. Its programs run under chroot.
# DIRECTORY/root/pg/data is a cluster that has the extension (made on PORT) and is never started again: tests run
# copies of it.
set -eu
port=$2
mkdir -p "$1"
base=$(cd "$1" && pwd)
root=$base/root
suite=forky
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

[ "$(id -u)" = 0 ] || { echo "needs root: chroot" >&2; exit 1; }
mirror=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep '/debian/*$' | head -n 1)
[ -n "$mirror" ] || { echo "apt knows no Debian mirror" >&2; exit 1; }

# An apt of its own: another suite, and a machine on which nothing is installed yet.
rm -rf "$base/apt" "$root"
mkdir -p "$base/apt/lists/partial" "$base/apt/cache/archives/partial" "$root"
: > "$base/apt/status"
echo "deb [signed-by=$keyring] $mirror $suite main" > "$base/apt/sources.list"
cat > "$base/apt/apt.conf" <<CONF
Dir::Etc::SourceList "$base/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Lists "$base/apt/lists";
Dir::State::Status "$base/apt/status";
Dir::Cache "$base/apt/cache";
Acquire::Languages "none";
APT::Install-Recommends "false";
CONF
export APT_CONFIG="$base/apt/apt.conf"
apt-get -qq update
apt-get -qq -y --download-only install postgresql-18 postgresql-18-documentdb bash coreutils dash libc-bin > /dev/null
unset APT_CONFIG

# base-files makes the links /bin -> usr/bin that all others expect.
set -- "$base"/apt/cache/archives/base-files_*.deb "$base"/apt/cache/archives/*.deb
for package in "$@"; do dpkg-deb -x "$package" "$root"; done
# Two of DocumentDB's dependencies are found under the name that a maintainer script would have linked.
for control in "$root"/usr/share/postgresql/18/extension/postgis*-3.control; do
    ln -f "$control" "${control%-3.control}.control"
done
echo 'postgres:x:70:70::/pg:/bin/sh' > "$root/etc/passwd"
echo 'postgres:x:70:' > "$root/etc/group"
echo '127.0.0.1 localhost' > "$root/etc/hosts"
echo 'hosts: files' > "$root/etc/nsswitch.conf"
mkdir -p "$root/pg" "$root/tmp"
chmod 1777 "$root/tmp"
chown 70:70 "$root/pg"
for device in null zero random urandom; do
    [ -e "$root/dev/$device" ] || cp -a "/dev/$device" "$root/dev/$device"
done
chroot "$root" /sbin/ldconfig

# The template cluster.
inside() { chroot --userspec=70:70 "$root" env -i PATH=/usr/lib/postgresql/18/bin:/usr/bin HOME=/pg LANG=C.UTF-8 "$@"; }
inside initdb -D /pg/data -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync > /dev/null
cat >> "$root/pg/data/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
unix_socket_directories = '/pg'
shared_preload_libraries = 'pg_cron,pg_documentdb_core,pg_documentdb'
cron.database_name = 'postgres'
deadlock_timeout = '10ms'
jit = off
CONF
inside pg_ctl -D /pg/data -w -l /pg/log -o "-p $port" start > /dev/null
trap 'inside pg_ctl -D /pg/data -w -m immediate stop > /dev/null 2>&1' EXIT
inside psql -h 127.0.0.1 -p "$port" -U postgres -q -v ON_ERROR_STOP=1 -c 'create extension documentdb cascade'
trap - EXIT
inside pg_ctl -D /pg/data -w -m fast stop > /dev/null
rm -rf "$base/apt"
