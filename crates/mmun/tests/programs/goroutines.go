// Goroutines, whose stacks are small, that map, discard and unmap memory; children; signals. With cgo.go it is a program of
// the C library, without it a static one.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"
)

func deep(n int) int {
	if n == 0 {
		return 0
	}
	return deep(n-1) + 1
}

func main() {

	count := 200
	var group sync.WaitGroup
	for i := 0; i < 8; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for j := 0; j < count; j++ {
				b, err := syscall.Mmap(-1, 0, 8192, 3, 0x22)
				if err != nil {
					panic(err)
				}
				b[0] = 1
				syscall.Madvise(b, 4)
				if b[0] != 0 {
					panic("not discarded")
				}
				if j%50 == 0 {
					deep(5000)
					runtime.GC()
				}
				if err := syscall.Munmap(b); err != nil {
					panic(err)
				}
			}
		}()
	}
	group.Wait()
	for i := 0; i < 5; i++ {
		out, err := exec.Command("echo", "child").Output()
		if err != nil || string(out) != "child\n" {
			panic(fmt.Sprint(err, string(out)))
		}
	}
	c := make(chan os.Signal, 10)
	signal.Notify(c, syscall.SIGUSR1, syscall.SIGSYS)
	for i := 0; i < 10; i++ {
		syscall.Kill(os.Getpid(), syscall.SIGUSR1)
		<-c
	}
	syscall.Kill(os.Getpid(), syscall.SIGSYS)
	<-c
	func() {
		defer func() { recover() }()
		var p *int
		fmt.Println(*p)
	}()
	// Preempted by a signal.
	stop := false
	go func() {
		for !stop {
		}
	}()
	time.Sleep(30 * time.Millisecond)
	runtime.GC()
	fmt.Println("go ok")
	os.Exit(0)
}
