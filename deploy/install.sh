#!/usr/bin/env bash
# Install or uninstall the result of `make dist`, while containers start and stop.
#   deploy/install.sh install | uninstall
#   DESTDIR       prepended to every path, for packages
#   CNI_BIN_DIR   the runtimes' directory of plugins (default: /opt/cni/bin)
#   DIST          the directory to install (default: dist/bin)
#
# CNI_BIN_DIR gets the launcher of each plugin, and CNI_BIN_DIR/.pycni one directory for each build.
# A launcher starts the program of its own build only. That directory is complete before the launcher
# is renamed into place, and stays for a while after the launcher was replaced.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
dist=${DIST:-$root/dist/bin}
bin=${DESTDIR:-}${CNI_BIN_DIR:-/opt/cni/bin}
store=$bin/.pycni
keep_minutes=10 # no plugin runs longer: runtimes have shorter time limits
new=.pycni-new  # suffix of temporary files

say() { echo "install: $*"; }

die() {
    echo "install: $*" >&2
    exit 1
}

# put FILE PLACE: copy FILE to PLACE by an atomic rename.
put() {
    local mode=644
    [[ ! -x $1 ]] || mode=755
    make_directory "${2%/*}"
    install -m "$mode" "$1" "$2$new"
    mv -fT "$2$new" "$2"
}

make_directory() {
    [[ -d $1 ]] || install -d -m 755 "$1"
}

# One call at a time. The lock is on the directory itself, so no lock file is left.
lock() {
    exec 9<"$store"
    flock 9
}

# Print the type of a launcher of a build in the store, and fail for any other file. The first builds
# had one launcher for all names.
type_of() {
    local launcher
    [[ -f $1 && ! -L $1 ]] || return
    for launcher in "$store"/*/launcher "$store"/*/launcher/*; do
        if cmp -s "$1" "$launcher"; then
            [[ ${launcher##*/} != launcher ]] || launcher=$1
            echo "${launcher##*/}"
            return
        fi
    done
    return 1
}

is_ours() {
    type_of "$1" >/dev/null
}

names() {
    find "$1" -maxdepth 1 -type f ! -name '.*' -printf '%f\n' | sort
}

put_bundle() {
    local from=$dist/.pycni/$build to=$store/$build file
    if [[ ! -e $to ]]; then
        rm -rf "${store:?}"/*"$new"
        cp -RT "$from" "$to$new"
        chmod -R u=rwX,go=rX "$to$new"
        mv -T "$to$new" "$to"
    elif diff -rq --exclude=superseded "$from" "$to" >/dev/null; then
        return
    else # the build is in use: replace differing files one by one
        while read -r file; do
            cmp -s "$from/$file" "$to/$file" || put "$from/$file" "$to/$file"
        done < <(cd "$from" && find . -type f)
    fi
    sync -f "$store" # after a power failure a launcher must not exist without its program
}

# put_launcher PLACE TYPE: a hard link of the launcher in the store. If links fail, a copy.
put_launcher() {
    local launcher=$store/$build/launcher/$2
    [[ ! $1 -ef $launcher ]] || return 0
    ln -f "$launcher" "$1$new" 2>/dev/null || install -m 755 "$launcher" "$1$new"
    mv -fT "$1$new" "$1"
}

# Keep another vendor's plugin of the same name; `uninstall` restores it.
save_foreign() {
    if [[ -e $1 || -L $1 ]] && ! is_ours "$1"; then
        make_directory "$store/replaced"
        cp -aT "$1" "$store/replaced/${1##*/}$new"
        mv -fT "$store/replaced/${1##*/}$new" "$store/replaced/${1##*/}"
        say "replacing '$1', which is not one of ours; 'uninstall' brings it back"
    fi
}

take_away() {
    if [[ -e $store/replaced/$1 || -L $store/replaced/$1 ]]; then
        mv -fT "$store/replaced/$1" "$bin/$1"
    else
        rm -f "$bin/$1"
    fi
}

# Remove superseded builds, except the last one and those that may still be running.
remove_old_builds() {
    local directory last=
    rm -f "$store/$build/superseded"
    for directory in "$store"/*/; do
        directory=${directory%/}
        if [[ -e $directory/launcher && $directory != "$store/$build" ]]; then
            [[ -e $directory/superseded ]] || touch "$directory/superseded"
            [[ $last && ! $directory/superseded -nt $last/superseded ]] || last=$directory
        fi
    done
    for directory in "$store"/*/; do
        directory=${directory%/}
        if [[ $directory != "$last" && -e $directory/superseded ]] &&
            [[ $(find "$directory/superseded" -mmin "+$keep_minutes") ]]; then
            rm -rf "$directory"
        fi
    done
}

do_install() {
    local name type
    build=$(cd "$dist/.pycni" 2>/dev/null && echo *) || die "there is no '$dist': run 'make dist'"
    [[ -d $dist/.pycni/$build/launcher ]] || die "'$dist' is not what 'make dist' makes"
    for name in $(names "$dist"); do
        [[ ! -d $bin/$name ]] || die "'$bin/$name' is a directory"
    done
    make_directory "$bin"
    make_directory "$store"
    lock
    find "$bin" -maxdepth 1 -type f -name "*$new" -delete # leftovers of a killed call
    put_bundle
    for name in $(names "$dist"); do
        save_foreign "$bin/$name"
        put_launcher "$bin/$name" "$name"
    done
    for name in $(names "$bin"); do
        if [[ ! -e $dist/$name ]] && type=$(type_of "$bin/$name"); then
            if [[ -e $dist/$type ]]; then # an operator has given it another name
                put_launcher "$bin/$name" "$type"
            else
                take_away "$name" # this build has no such plugin
            fi
        fi
    done
    remove_old_builds
    say "build $build is in '$bin': $(names "$dist" | paste -sd' ')"
}

do_uninstall() {
    local name directory
    [[ -d $store ]] || die "there is nothing of ours in '$bin'"
    lock
    for name in $(names "$bin"); do
        if is_ours "$bin/$name"; then
            take_away "$name"
        fi
    done
    find "$bin" -maxdepth 1 -type f -name "*$new" -delete
    # A plugin that could not be restored, because another file has its name, is of no use any more.
    rm -rf "$store/replaced"
    for directory in "$store"/*/; do
        [[ ! -e $directory/launcher ]] || rm -rf "$directory"
    done
    rmdir --ignore-fail-on-non-empty "$store"
    say "removed from '$bin'"
}

case ${1:-} in
    install) do_install ;;
    uninstall) do_uninstall ;;
    *)
        sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
