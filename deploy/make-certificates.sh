#!/usr/bin/env bash
# Makes what a server and its callers need for TLS and tokens:
#   ./make-certificates.sh FOLDER [NAME...]
# An authority of your own and, in a folder for each: of the server a certificate and all tokens, of admin, worker and viewer a token,
# and a certificate for servers that ask for one. NAMEs are host names or addresses of the server, besides those that the stack and
# the manifests here give it. Once more, it makes the certificates anew, and leaves authority and tokens as they are.
set -euo pipefail

if [ $# = 0 ]; then
  echo 'usage: make-certificates.sh FOLDER [NAME...]' >&2
  exit 2
fi
folder=$1
shift
names=DNS:localhost,IP:127.0.0.1,DNS:server,DNS:asyncps,DNS:asyncps-server
for name in "$@"; do
  case $name in
    *:* | *[0-9]) names+=,IP:$name ;; # No top-level domain ends with a digit.
    *) names+=,DNS:$name ;;
  esac
done

# Closed to all others on this machine; what is in it a container's own user has to read.
umask 022
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"
mkdir -p server admin worker viewer

if [ ! -e ca-key.pem ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj '/CN=asyncps authority' \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign -keyout ca-key.pem -out ca.pem 2> /dev/null
  chmod 600 ca-key.pem
fi

# issue HOLDER USAGE NAMES: aside first, as somebody may read them.
issue() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=asyncps $1" -keyout "$1/key.new" -out request 2> /dev/null
  openssl x509 -req -in request -CA ca.pem -CAkey ca-key.pem -set_serial "0x$(openssl rand -hex 16)" -days 365 -out "$1/cert.new" \
    -extfile <(printf 'basicConstraints=CA:FALSE\nextendedKeyUsage=%s\nsubjectAltName=%s\n' "$2" "$3") 2> /dev/null
  rm request
  chmod 644 "$1/key.new"
  mv "$1/key.new" "$1/key.pem"
  mv "$1/cert.new" "$1/cert.pem"
  cp ca.pem "$1/ca.pem"
}
issue server serverAuth "$names"
for role in admin worker viewer; do
  issue "$role" clientAuth "DNS:$role"
  if [ ! -e "$role/token" ]; then
    openssl rand -hex 32 > "$role/token"
    echo "$role $(cat "$role/token")" >> server/tokens
  fi
done
echo "made $folder: ca.pem, and server, admin, worker and viewer"
