# Runs in the Linux guest: every case of /in/cases, one after the other, results to /out.
# Prints a line for each case as it ends.
limit_s=25
set -a
SECTORS=/usr/bin/sectors
for number in 0 1 2 3 4 5 6 7; do
  eval "R$number=/dev/ram$number R${number}N=1:$number L$number=/dev/loop$number L${number}N=7:$number"
done
# scsi_debug: S0 and S1 are two paths to one disk, S2 and S3 to another.
for target in 0 1; do
  for lun in 0 1; do
    disk=
    for _ in {1..100}; do
      for entry in /sys/class/scsi_device/*:0:$target:$lun/device/block/*; do
        [ -e "$entry" ] && disk=${entry##*/}
      done
      [ -n "$disk" ] && break
      sleep 0.1
    done
    [ -n "$disk" ] || continue
    number=$((lun * 2 + target))
    eval "S$number=/dev/$disk S${number}N=$(cat "/sys/block/$disk/dev")"
  done
done
DMMAJ=$(sed -n 's/^ *\([0-9]*\) device-mapper$/\1/p' /proc/devices)
set +a
{
  echo "dm $DMMAJ"
  for number in 0 1 2 3; do
    name=S$number key=S${number}N
    echo "S$number ${!name} ${!key}"
  done
} >/out/devices
# dmsetup without starting it (zygote.c). What needs a program of its own runs `command dmsetup`.
# Another one after a case that hangs, since the command it hangs in is never answered.
start_zygote() {
  rm -f /tmp/ask /tmp/answer
  mkfifo /tmp/ask /tmp/answer
  exec 5<>/tmp/ask 6<>/tmp/answer
  LD_PRELOAD=/usr/lib/zygote.so /usr/bin/dmsetup 3<&5 4>&6 </dev/null &
}
start_zygote
asked=0
dmsetup() {
  # A pipeline has several at once, and reads its input.
  if [[ $command == *[\|\&\<]* ]]; then
    command dmsetup "$@"
    return
  fi
  local words all number code
  asked=$((asked + 1))
  words=("$asked" "/proc/$BASHPID/fd/13" "/proc/$BASHPID/fd/14" dmsetup "$@")
  printf -v all '%s\n' "${words[@]}"
  # Copies, since descriptor 1 is something else while the request is written.
  {
    {
      printf '%08x' ${#all}
      printf '%s\0' "${words[@]}"
    } >&5
    # An answer that came too late for somebody else is passed over.
    while read -r -t $limit_s -u 6 number code; do
      [ "$number" = $asked ] && return "$code"
    done
    return 124
  } 13>&1 14>&2
}
# Removes everything a case left; what is suspended or queueing would hold it.
clean() {
  local device found command=
  for _ in 1 2 3 4 5; do
    found=$(dmsetup info -c --noheadings -o name,suspended 2>/dev/null)
    [ "$found" = "No devices found" ] && return 0
    # A device whose paths are gone holds its I/O, and so its openers.
    for device in $(dmsetup ls --target multipath 2>/dev/null | cut -f1); do
      dmsetup message "$device" 0 fail_if_no_path 2>/dev/null
    done
    for device in $(sed -n 's/:Suspended$//p' <<<"$found"); do
      timeout 5 /usr/bin/dmsetup resume "$device" 2>/dev/null
    done
    timeout 20 /usr/bin/dmsetup remove_all --force >/dev/null 2>&1
  done
  return 1
}
# Says where a case hangs: its last files, and what dmsetup and its tools wait for.
where() {
  local entry words
  echo "$1 has $(cd "$1" && echo *.rc | wc -w) answers"
  for entry in /proc/[0-9]*; do
    words=$(tr '\0' ' ' <"$entry/cmdline")
    case $words in
      *dmsetup* | *sectors* | *replay.sh* | *guest.sh*)
        echo "process ${entry##*/} is: $words, state $(sed -n 's/^State:.//p' "$entry/status")"
        sed 's/^/  waits in the kernel: /' "$entry/stack"
        ;;
    esac
  done
}
# Each case is a group of its own, so that all of it can be ended.
set -m
mkfifo /tmp/never
exec 8<>/tmp/never
for input in /in/cases/*/; do
  id=${input%/}
  id=${id##*/}
  mkdir -p "/out/$id"
  cp "$input/steps" "/out/$id/steps"
  if grep -qE '(^|[^a-z])(io|below) ' "$input/steps"; then
    for name in $(grep -oE '\$[RLS][0-7]' "$input/steps" | tr -d '$' | sort -u); do
      sectors zero "${!name}" 0 32768 >/dev/null
    done
  fi
  read -r start _ </proc/uptime
  (
    . /in/replay.sh "/out/$id"
    : >"/out/$id/done"
  ) </dev/null >"/out/$id/log" 2>&1 &
  job=$!
  turns=0
  # Its last file, and not its process: bash may leave that one unreaped for a while.
  while [ ! -e "/out/$id/done" ] && [ $turns -lt $((limit_s * 50)) ]; do
    # A pause without a program.
    read -r -t 0.02 -u 8
    turns=$((turns + 1))
  done
  word=
  [ -e "/out/$id/done" ] || { word=" HANGS" && where "/out/$id"; }
  kill -9 -- -$job 2>/dev/null
  [ -n "$word" ] && start_zygote
  read -r end _ </proc/uptime
  clean || word="$word LEFTOVERS"
  echo "$id $start $end$word"
  [ "$word" = "${word%LEFTOVERS}" ] || break
done
