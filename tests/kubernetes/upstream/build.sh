#!/usr/bin/env bash
# Build the judges that nobody here wrote: Kubernetes' end-to-end tests, agnhost, critest, and ginkgo, which runs
# tests side by side.
#   tests/kubernetes/upstream/build.sh FOLDER GO   # the program `go`; nothing is done where they are there
# The modules here and in critest/ pin all sources. Modules of two, as critest needs newer ones of the same
# libraries: in one module they would have to be built anew for the tests of Kubernetes, too. Those use the
# packages that tests/kubernetes/build has compiled. Alone it takes 10 minutes of a processor more.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
folder=$1 go=$2

digest() {
    "$go" env GOVERSION
    cat "$here"/{build.sh,go.mod,go.sum,e2e_test.go,critest/go.mod,critest/go.sum}
}

# test_of MODULE PACKAGE NAME: the test program of a package.
test_of() {
    echo "upstream: building $3"
    "$go" -C "$1" test -c "${options[@]}" -o "$folder/new/$3" "$2"
}

# program_of MODULE PACKAGE NAME: a program.
program_of() {
    echo "upstream: building $3"
    "$go" -C "$1" build "${options[@]}" -o "$folder/new/$3" "$2"
}

export CGO_ENABLED=0
options=(-p 2 -trimpath -buildvcs=false -ldflags "-s -w") # the same as of build/programs.py, for Go's cache
current=$(digest | sha256sum | cut -c -16)
[[ ! -e $folder/$current ]] || exit 0
rm -rf "$folder/new"
mkdir -p "$folder/new"
test_of "$here" . e2e.test
program_of "$here" k8s.io/kubernetes/test/images/agnhost agnhost
program_of "$here" k8s.io/kubernetes/test/images/regression-issue-74839 regression-issue-74839
program_of "$here" github.com/onsi/ginkgo/v2/ginkgo ginkgo
source=$("$go" -C "$here" list -f '{{.Dir}}' k8s.io/kubernetes/test/images/agnhost)
install -m 644 "$source"/porter/localhost.{crt,key} "$folder/new" # for servers with TLS
test_of "$here/critest" sigs.k8s.io/cri-tools/cmd/critest critest
find "$folder" -mindepth 1 -maxdepth 1 ! -name new -exec rm -rf {} +
mv "$folder"/new/* "$folder"
rmdir "$folder/new"
touch "$folder/$current"
