-- Writes a task's record unless the id is known. Gives its status.
--
-- KEYS[1]  ns:{id}:task    hash        written
-- KEYS[2]  ns:{id}:events  stream      event `queued` appended
-- KEYS[3]  ns:open         sorted set  id added
-- ARGV     id, request JSON, event tail, queue, deadline in seconds from now or ''
local status = redis.call('HGET', KEYS[1], 'status')
if status then return {status, redis.call('HGET', KEYS[1], 'request')} end
local now = now_s()
redis.call('HSET', KEYS[1], 'status', 'queued', 'attempt', 0, 'fence', 0, 'request', ARGV[2],
  'queue', ARGV[4], 'submitted_at', string.format('%.6f', now))
if ARGV[5] ~= '' then
  redis.call('HSET', KEYS[1], 'deadline_at', string.format('%.6f', now + ARGV[5]))
end
redis.call('ZADD', KEYS[3], string.format('%.6f', now), ARGV[1])
append_event(KEYS[1], KEYS[2], ARGV[3])
return {'queued', ARGV[2]}
