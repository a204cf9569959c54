#!/bin/sh
# Keep encounters in a folder until each is recorded: once, whatever the network does. Any shell, and curl from 7.71.
#
# sh encounters.sh keep PATIENT_ID < encounter.json    keeps an encounter, under a key that is made here, once
# sh encounters.sh send                                sends the kept encounters; run it as often as you like
#
# ENCOUNTERS_URL, ENCOUNTERS_TOKEN and ENCOUNTERS_OUTBOX say where to, as whom, and which folder.
set -eu
case "$# ${1:-}" in
  "1 send" | "2 keep") ;;
  *) echo "usage: encounters.sh keep PATIENT_ID < encounter.json | encounters.sh send" >&2 && exit 2 ;;
esac
outbox=${ENCOUNTERS_OUTBOX:-outbox}
mkdir -p "$outbox/waiting" "$outbox/recorded" "$outbox/refused"

# Its file's name is its key, the first line is the patient, the rest is the body. Whole, or not there at all.
keep() {
  key=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  { printf '%s\n' "$1" && cat; } > "$outbox/$key"
  sync
  mv "$outbox/$key" "$outbox/waiting/$key"
}

# Prints the last status, 000 where no answer came. curl itself tries again after a lost connection, 408, 429, 500,
# 502, 503 and 504, later each time, and never sooner than Retry-After says. The token is not seen in the process list.
send() {
  patient=$(head -n 1 "$1" | tr -d '\n' | od -An -v -tx1 | tr -d ' \n' | sed 's/../%&/g')
  tail -n +2 "$1" > "$outbox/body"
  : > "$outbox/answer"
  printf 'Authorization: Bearer %s\n' "$ENCOUNTERS_TOKEN" | curl --silent --show-error --header @- \
    --header 'Content-Type: application/json' --header "Idempotency-Key: ${1##*/}" --data-binary "@$outbox/body" \
    --max-time 30 --retry 9 --retry-all-errors --output "$outbox/answer" --write-out '%{http_code}' \
    "$ENCOUNTERS_URL/v1/patients/$patient/encounters" || true
}

send_all() {
  result=0
  for file in "$outbox"/waiting/*; do
    [ -e "$file" ] || break
    status=$(send "$file")
    case $status in
      201) mv "$file" "$outbox/recorded/" && continue ;;
      000 | 408 | 429 | 500 | 502 | 503 | 504) ;; # it waits for the next time
      401 | 403) echo "$status: the token's fault, the others would fare no better" >&2 && return 1 ;;
      *) mv "$file" "$outbox/refused/" ;;
    esac
    echo "${file##*/} $status $(cat "$outbox/answer")" >&2
    result=1
  done
  return $result
}

case $1 in
  keep) keep "$2" ;;
  send) send_all ;;
esac
