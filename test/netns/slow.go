package netns

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// SlowEnv names the environment variable that holds the factor by which this
// machine is slower than an ordinary one, such as 10 in an emulated machine.
const SlowEnv = "FTPHELPER_SLOW"

var slowFactor = sync.OnceValue(func() float64 {
	text := os.Getenv(SlowEnv)
	if text == "" {
		return 1
	}
	factor, err := strconv.ParseFloat(text, 64)
	if err != nil || factor < 1 {
		fmt.Fprintf(os.Stderr, "%s=%q is not a number from 1 up; time-outs stay as they are\n", SlowEnv, text)
		return 1
	}
	return factor
})

// Scale stretches a time-out by the factor in the environment variable [SlowEnv].
func Scale(d time.Duration) time.Duration {
	return time.Duration(float64(d) * slowFactor())
}
