package faults
import ("testing";"os";"strconv";"fmt")
func TestTraceOne(t *testing.T){ n,_:=strconv.Atoi(os.Getenv("SEED")); f,_:=os.Create("/tmp/trace.txt"); defer f.Close(); r:=Run(uint64(n),f); fmt.Println(r.Fault) }
