# nearest <word> <candidate> ...: prints the candidate most similar to <word>, or nothing if none is similar.
# shellcheck shell=bash
nearest() {
  printf '%s\n' "$@" | awk '
    function least(a, b) { return a < b ? a : b }
    NR == 1 { word = $0; best = int((length(word) + 5) / 3); next }      # more edits than these are another word
    {
      for (j = 0; j <= length($0); j++) row[j] = j
      for (i = 1; i <= length(word); i++) {
        diagonal = row[0]; row[0] = i
        for (j = 1; j <= length($0); j++) {
          edit = diagonal + (substr(word, i, 1) != substr($0, j, 1))
          diagonal = row[j]
          row[j] = least(edit, least(row[j], row[j - 1]) + 1)
        }
      }
      distance = index($0, word) == 1 ? 1 : row[length($0)]             # <word> may be a prefix
      if (distance < best) { best = distance; result = $0 }
    }
    END { if (result != "") print result }'
}
