// Starts a program in the ways of Go: `starts PROGRAM`.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
)

func main() {
	var group sync.WaitGroup
	for child := 0; child < 3; child++ {
		group.Add(1)
		go func() {
			defer group.Done()
			if err := exec.Command(os.Args[1]).Run(); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}()
	}
	group.Wait()
	if err := exec.Command("/nowhere/at/all").Run(); err == nil {
		os.Exit(2)
	}
	fmt.Println("starts ok")
}
