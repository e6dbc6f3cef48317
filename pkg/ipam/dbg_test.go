package ipam
import ("testing";"bytes";"fmt")
func TestDbg(t *testing.T){
	_, image := goodFile(t,40)
	m,_ := findMeta(bytes.NewReader(image), int64(len(image)))
	fmt.Printf("%+v %d\n", m, len(image))
	for id:=uint64(0); id<m.high; id++ { p:=image[id*4096:]; fmt.Println(id, native.Uint64(p), native.Uint16(p[8:]), native.Uint16(p[10:]), native.Uint32(p[12:])) }
}
