// A whole cluster's programs in one executable, which runs the program of the name that it is called by.
//
// The programs share most of their packages: one link instead of nine saves minutes of a build, and one file
// of 180 MB replaces nine.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	_ "time/tzdata" // there is no zone information where the programs run

	"go.etcd.io/etcd/server/v3/etcdmain"

	"github.com/coredns/coredns/coremain"
	// The plugins that the Corefile of the tests names. coremain alone has none.
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"

	"github.com/spf13/cobra"

	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubeadm "k8s.io/kubernetes/cmd/kubeadm/app"
	kubeadmerrors "k8s.io/kubernetes/cmd/kubeadm/app/util/errors"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// served gives the main function of a program that component-base runs.
func served(command func() *cobra.Command) func() {
	return func() { os.Exit(cli.Run(command())) }
}

func runKubeadm() { kubeadmerrors.HandleError(kubeadm.Run()) }

func runKubectl() {
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err) // prints what kubectl's users know, and exits
	}
}

func newKubelet() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }

func newScheduler() *cobra.Command { return scheduler.NewSchedulerCommand() }

func main() {
	programs := map[string]func(){
		"coredns":                 coremain.Run,
		"etcd":                    func() { etcdmain.Main(os.Args) },
		"kube-apiserver":          served(apiserver.NewAPIServerCommand),
		"kube-controller-manager": served(controllers.NewControllerManagerCommand),
		"kube-proxy":              served(proxy.NewProxyCommand),
		"kube-scheduler":          served(newScheduler),
		"kubeadm":                 runKubeadm,
		"kubectl":                 runKubectl,
		"kubelet":                 served(newKubelet),
	}
	if run, found := programs[filepath.Base(os.Args[0])]; found {
		run()
		return
	}
	names := slices.Sorted(maps.Keys(programs))
	fmt.Fprintf(os.Stderr, "call %s by a link with one of these names: %s\n", os.Args[0], strings.Join(names, ", "))
	os.Exit(2)
}
