# Source after the defaults: `--some-option value`, `--some-option=value` and `--some_option value` set `some_option`.
#
# An option is an unindented line `name=default   # description` in one of `option_files` (default: the running script), so the code,
# --help and the check of names always agree. An option with the default true or false takes only these two values, and is set to true
# if it has no value. `given` has the names of the options on the command line, each between spaces.
# shellcheck shell=bash
. "$(dirname "${BASH_SOURCE[0]}")/nearest.sh"
[[ -n ${option_files+set} ]] || option_files=("$0")
given=" "

usage_error() { echo "$0: $*" >&2; exit 2; }

list_options() {    # name, default and description of each option, separated by tabs
  awk 'match($0, /^[a-z_]+=/) && (comment = index($0, " # ")) {
    name = substr($0, 1, RLENGTH - 1); value = substr($0, RLENGTH + 1, comment - RLENGTH - 1)
    gsub(/"|^ +| +$/, "", value)
    if (!seen[name]++) print name "\t" value "\t" substr($0, comment + 3)
  }' "${option_files[@]}"
}

show_help() {
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "${option_files[0]}"
  printf '\nOptions (their defaults):\n'
  list_options | awk -F '\t' '{
    gsub(/_/, "-", $1)
    printf "  --%-15s %s%s\n", $1, $3, $2 == "" ? "" : " (" $2 ")"
  }'
}

parse_options() {
  local known option name value near
  known=" $(list_options | cut -f 1 | tr '\n' ' ')"
  while [[ $# -gt 0 ]]; do
    option=${1%%=*}; name=${option#--}; name=${name//-/_}
    if [[ $option == -h || $option == --help ]]; then
      show_help
      exit 0
    elif [[ $option != -* ]]; then
      usage_error "unexpected argument '$1'; options begin with --"
    elif [[ $option != --* || $known != *" $name "* ]]; then
      name=${option#-}; name=${name#-}
      # shellcheck disable=SC2086    # known is a list of words
      near=$(nearest "$name" ${known//_/-} help)
      usage_error "unknown option $option${near:+; did you mean --$near?} (--help lists all)"
    elif [[ $1 == *=* ]]; then
      value=${1#*=}; shift
    elif [[ $# -ge 2 && $2 != --* ]]; then
      value=$2; shift 2
    elif [[ ${!name} == true || ${!name} == false ]]; then
      value=true; shift
    else
      usage_error "option $option needs a value; write a value that begins with -- as $option=--value"
    fi
    if [[ ${!name} == true || ${!name} == false ]] && [[ $value != true && $value != false ]]; then
      usage_error "option $option must be true or false, not '$value'"
    fi
    printf -v "$name" '%s' "$value"
    given+="$name "
  done
}

parse_options "$@"
