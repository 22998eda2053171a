#compdef rowctl
# Completion of rowctl for zsh: rowctl knows its verbs and options, and asks the daemon for names.
_rowctl() {
	local -a typed ends open ends_about open_about
	local line value about
	typed=("${(Q)words[@][1,CURRENT]}")
	for line in "${(f)$(command "${typed[1]}" complete -- "${typed[@]}" 2> /dev/null)}"; do
		[[ -n $line ]] || continue
		value=${line%%$'\t'*}
		about=${value}${${line#*$'\t'}:+  -- ${line#*$'\t'}}
		if [[ $value == *[@=/] ]]; then
			open+=("$value") open_about+=("$about")
		else
			ends+=("$value") ends_about+=("$about")
		fi
	done
	(( $#ends )) && compadd -l -d ends_about -a ends
	(( $#open )) && compadd -l -S '' -d open_about -a open
	(( $#ends + $#open ))
}
if [[ ${zsh_eval_context[-1]} == loadautofunc ]]; then
	_rowctl "$@"
else
	compdef _rowctl rowctl
fi
