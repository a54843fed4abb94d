#!/bin/sh
# infra/ray-certificate.sh FOLDER: makes tls.crt, tls.key and ca.crt in FOLDER, for the address POD_IP and this machine itself.
# It is signed by the authority in /run/authority (tls.crt, tls.key). Ray's processes compare the address with the certificate.
set -eu
folder=${1:?name the folder for the certificate}
: "${POD_IP:?set POD_IP to the address of this node}"
authority=${AUTHORITY_FOLDER:-/run/authority}
[ -s "$authority/tls.key" ] || { echo "no $authority/tls.key: is cert-manager there, and its Certificate ray-authority ready?" >&2; exit 2; }
umask 077
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=ray-node" \
  -keyout "$folder/tls.key" -out "$folder/request" 2>/dev/null
printf 'subjectAltName=IP:%s,IP:127.0.0.1,DNS:localhost,DNS:ray-head-svc,DNS:ray-head\n' "$POD_IP" >"$folder/names"
openssl x509 -req -in "$folder/request" -CA "$authority/tls.crt" -CAkey "$authority/tls.key" -set_serial "0x$(openssl rand -hex 16)" \
  -days 1825 -extfile "$folder/names" -out "$folder/tls.crt" 2>/dev/null
cp "$authority/tls.crt" "$folder/ca.crt"
rm "$folder/request" "$folder/names"
