# Completion of rowctl for bash: rowctl knows its verbs and options, and asks the daemon for names.
_rowctl() {
	COMPREPLY=()
	local rest=${COMP_LINE:0:COMP_POINT} words=() i piece
	# bash takes a word apart at @, = and :, and completes the last part only. Here words are as they were typed.
	for ((i = 0; i <= COMP_CWORD; i++)); do
		if [[ $rest == [[:blank:]]* || $i == 0 ]]; then
			rest=${rest#"${rest%%[![:blank:]]*}"}
			words+=("")
		fi
		piece=${COMP_WORDS[i]}
		((i < COMP_CWORD)) || piece=$rest
		words[${#words[@]} - 1]+=$piece
		rest=${rest#"$piece"}
	done
	words=("${words[@]//\\/}")
	local typed=${words[${#words[@]} - 1]} candidate
	# The part that bash leaves alone; it replaces $2.
	local kept=${typed%"${2//\\/}"}
	while IFS=$'\t' read -r candidate _; do
		# A name may have anything in it.
		printf -v candidate %q "${candidate#"$kept"}"
		COMPREPLY+=("${candidate//\\@/@}")
	done < <("${words[0]}" complete -- "${words[@]}" 2> /dev/null)
	if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[@=/] ]]; then
		compopt -o nospace 2> /dev/null
	fi
}
complete -F _rowctl rowctl
