# Runs the steps of a case in one shell, as they were recorded, and keeps what each printed.
# Arguments: the folder with `steps` (one command a line), where the results go, too.
# The devices are in R0 to R7; T and try are what the recorded steps use besides dmsetup.
folder=$1
T() { printf '%s\n' "$@"; }
try() {
  local t=$1 r
  shift
  dmsetup create "$@" tried --table "$t"
  r=$?
  [ $r = 0 ] && { dmsetup table --showkeys tried; dmsetup status --noflush tried; dmsetup remove tried; }
  return $r
}
number=0
while IFS= read -r command <&7; do
  step=$folder/$number
  eval "$command" >"$step.out" 2>"$step.err" </dev/null
  echo $? >"$step.rc"
  columns=name,devno,attr,open,segments,events,uuid
  dmsetup info -c --noheadings --separator '|' -o $columns >"$step.info" 2>&1
  dmsetup table --showkeys >"$step.table" 2>&1
  dmsetup table --inactive >"$step.inactive" 2>&1
  dmsetup status --noflush >"$step.status" 2>&1
  number=$((number + 1))
done 7<"$folder/steps"
