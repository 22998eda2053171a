# Completion of rowctl for fish: rowctl knows its verbs and options, and asks the daemon for names.
function __rowctl_complete
    set -l words (commandline -opc)
    $words[1] complete -- $words (commandline -ct) 2>/dev/null
end
complete -c rowctl -f -a '(__rowctl_complete)'
