# Runs the steps of a case in one shell and keeps what each printed; on Linux and on us the same.
# Argument: the folder with `steps` (one command a line), where the results go, too.
# The devices below are in R0 to R7 (and L, S). On us UDM_SOCKET is set, and `udm` and `sectors` are
# in UDM and SECTORS; on Linux the mapped devices are nodes.
folder=$1
# A table of several lines.
T() { printf '%s\n' "$@"; }
# A table that may be refused: create, show, remove, so that it cannot hide the next one.
try() {
  local t=$1 r
  shift
  dmsetup create "$@" tried --table "$t"
  r=$?
  [ $r = 0 ] && { dmsetup table --showkeys tried; dmsetup status --noflush tried; dmsetup remove tried; }
  return $r
}
# io VERB DEVICE ...: I/O on a mapped device, see sectors.c. It holds the device open meanwhile.
io() {
  local verb=$1 device=$2 r
  shift 2
  # Whether there is a node then is a story of its own.
  [ -n "$(dmsetup table "$device" 2>/dev/null)" ] || {
    echo "no table"
    return 1
  }
  if [ -z "$UDM_SOCKET" ]; then
    sectors "$verb" "/dev/mapper/$device" "$@"
    return
  fi
  LD_PRELOAD='' "$UDM" export "$device" --nbd "unix:$folder/nbd" >/dev/null || return
  LD_PRELOAD='' "$SECTORS" "$verb" "nbd:$folder/nbd:$device" "$@"
  r=$?
  LD_PRELOAD='' "$UDM" unexport "$device" >/dev/null
  return $r
}
# below VERB FILE ...: the same on a device below.
below() { LD_PRELOAD='' "$SECTORS" "$@"; }
# True if I/O cannot hang; what is suspended holds it.
calm() {
  local states
  states=$(dmsetup info -c --noheadings -o suspended)
  case $states in *Suspended*) echo "something is suspended" && return 1 ;; esac
}
# What is asked after every step that may have changed something.
look() {
  # A made-up script asks by itself.
  case $folder in */seed-*) return ;; esac
  local columns=name,devno,attr,open,segments,events,uuid
  dmsetup info -c --noheadings --separator '|' -o $columns >"$step.info" 2>&1
  dmsetup table --showkeys >"$step.table" 2>&1
  dmsetup table --inactive >"$step.inactive" 2>&1
  dmsetup status --noflush >"$step.status" 2>&1
}
number=0
while IFS= read -r command <&7; do
  step=$folder/$number
  # Appending, since dmsetup may have opened the file for itself (guest.sh).
  eval "$command" >>"$step.out" 2>>"$step.err" </dev/null
  echo $? >"$step.rc"
  # The first answer is needed whole, what comes later only if it may have changed.
  [ $number = 0 ] && look
  case $command in
    *[\;\|\&]*) look ;;
    "dmsetup info"* | "dmsetup table"* | "dmsetup status"* | "dmsetup ls"* | "dmsetup deps"*) ;;
    "dmsetup targets"* | "dmsetup splitname"* | "below read"* | "io read"*) ;;
    *) [ $number = 0 ] || look ;;
  esac
  number=$((number + 1))
done 7<"$folder/steps"
